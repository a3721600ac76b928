/* The part of ONNX Runtime's C interface that an operator of one's own needs, declared by its binary layout.
 *
 * The Python package brings no headers. The interface is a table of function pointers to which releases only ever append, so a
 * position once published stays (its source asserts that); what an operator consists of is likewise a table, read as far as its
 * `version` says. Both are those of interface version 17, which every ONNX Runtime since 1.17 offers.
 */
#ifndef NORMSCOPE_ONNXRUNTIME_ABI_H
#define NORMSCOPE_ONNXRUNTIME_ABI_H

#include <stddef.h>
#include <stdint.h>

#define INTERFACE_VERSION 17

typedef struct OrtStatus OrtStatus; /* NULL is success */
typedef struct OrtValue OrtValue;
typedef struct OrtShape OrtShape;
typedef struct OrtContext OrtContext;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtDomain OrtDomain;
typedef struct OrtOptions OrtOptions;
typedef struct Operator Operator;

typedef void (*OrtFunction)(void);
typedef const OrtFunction *OrtTable;
typedef struct {
    OrtTable (*table_of_version)(uint32_t);
    const char *(*release)(void);
} OrtBase;

enum { INVALID_ARGUMENT = 2 };
enum { FLOAT = 1, INT64 = 7, DOUBLE = 11 };
enum { REQUIRED = 0, OPTIONAL = 1 };

/* position in the table, type of the function there */
#define CREATE_STATUS(t) ((OrtStatus * (*)(int, const char *))(t)[0])
#define CREATE_DOMAIN(t) ((OrtStatus * (*)(const char *, OrtDomain **))(t)[26])
#define ADD_OPERATOR(t) ((OrtStatus * (*)(OrtDomain *, const Operator *))(t)[27])
#define ADD_DOMAIN(t) ((OrtStatus * (*)(OrtOptions *, OrtDomain *))(t)[28])
#define MUTABLE_DATA(t) ((OrtStatus * (*)(const OrtValue *, void **))(t)[51])
#define RANK(t) ((OrtStatus * (*)(const OrtShape *, size_t *))(t)[61])
#define EXTENTS(t) ((OrtStatus * (*)(const OrtShape *, int64_t *, size_t))(t)[62])
#define SHAPE_OF(t) ((OrtStatus * (*)(const OrtValue *, OrtShape **))(t)[65])
#define ATTRIBUTE(t) ((OrtStatus * (*)(const OrtKernelInfo *, const char *, int64_t *))(t)[86])
#define INPUT(t) ((OrtStatus * (*)(const OrtContext *, size_t, const OrtValue **))(t)[90])
#define OUTPUT(t) ((OrtStatus * (*)(OrtContext *, size_t, const int64_t *, size_t, OrtValue **))(t)[91])
#define RELEASE_SHAPE(t) ((void (*)(OrtShape *))(t)[99])
#define PARALLEL(t) ((OrtStatus * (*)(const OrtContext *, void (*)(void *, size_t), size_t, size_t, void *))(t)[274])

struct Operator {
    uint32_t version;
    void *(*create)(const Operator *, OrtTable, const OrtKernelInfo *); /* older form of `prepare` */
    const char *(*name)(const Operator *);
    const char *(*provider)(const Operator *); /* NULL: the CPU */
    int (*input_type)(const Operator *, size_t);
    size_t (*inputs)(const Operator *);
    int (*output_type)(const Operator *, size_t);
    size_t (*outputs)(const Operator *);
    void (*compute)(void *, OrtContext *); /* older form of `run` */
    void (*destroy)(void *);
    int (*input_kind)(const Operator *, size_t);
    int (*output_kind)(const Operator *, size_t);
    int (*input_memory)(const Operator *, size_t);
    int (*variadic[4])(const Operator *);
    OrtStatus *(*prepare)(const Operator *, OrtTable, const OrtKernelInfo *, void **);
    OrtStatus *(*run)(void *, OrtContext *);
    OrtStatus *(*infer_shapes)(const Operator *, void *);
    int (*first_version)(const Operator *);
    int (*last_version)(const Operator *);
};

#endif
